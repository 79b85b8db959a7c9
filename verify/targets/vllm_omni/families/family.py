"""What an adapter says of one family, and what all of them share: the network, the prompts, the shell of a pipeline."""

from __future__ import annotations

import importlib
import importlib.util
import sys
import types
from collections.abc import Mapping
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from verify.schedule import Schedule

_WIDTH, _WORDS = 8, 5
# Packages for which empty modules were put in place.
_stand_ins: set[str] = set()
_SERVER = "vllm_omni.entrypoints"


@dataclass(frozen=True)
class Asked:
    """What a request means to a family.

    Attributes:
        steps: denoising steps.
        grid: rows and columns of the latent.
        scale: guidance; 1 evaluates the first branch alone.
        shift: of a flow's times, where the scheduler has one.
        seed: of prompts and noise.
        dtype: of latents, prompts and network.
        stochastic: whether the scheduler draws noise in each step.
    """

    steps: int
    grid: tuple[int, int]
    scale: float
    shift: float
    seed: int
    dtype: torch.dtype
    stochastic: bool = False


class Family:
    """One family. An adapter sets the attributes and fills in :meth:`denoise`, and whatever else is its own.

    Attributes:
        name: of the adapter.
        module: upstream's, below ``vllm_omni.diffusion.models``.
        pipeline_class: upstream's class.
        branches: in rank order.
        shape: of the latent; ``None`` stands for the rows and the columns, or for all tokens where there is one.
        axis: of the channels.
        latents: the argument of upstream's ``predict_noise`` that holds them.
        prompt: the argument that holds the branch's prompt; by it a call is known to be of a branch.
        steps_with: what takes a step: ``pipeline`` (the mixin's ``scheduler_step``) or ``scheduler`` (its ``step``).
        falls: whether the scheduler subtracts a velocity, as flows that run from noise at t = 1 do.
        draws: whether its scheduler can draw noise in each step.
        stands_in: what of upstream is replaced, besides encoders and VAE.
    """

    name: ClassVar[str]
    module: ClassVar[str]
    pipeline_class: ClassVar[str]
    branches: ClassVar[tuple[str, ...]] = ("positive", "negative")
    shape: ClassVar[tuple[int | None, ...]] = (1, None, 16)
    axis: ClassVar[int] = -1
    latents: ClassVar[str] = "hidden_states"
    prompt: ClassVar[str] = "encoder_hidden_states"
    steps_with: ClassVar[str] = "pipeline"
    falls: ClassVar[bool] = True
    draws: ClassVar[bool] = True
    stands_in: ClassVar[str] = "its transformer, by one layer that reads latents, time and prompt"

    def __init__(self, asked: Asked, device: torch.device) -> None:
        self.asked, self.device = asked, device
        self.prompts = {b: self.words(branch) for branch, b in enumerate(self.branches)}
        self.network = StandIn(self.channels, self.axis, asked.dtype).to(device)

    @property
    def channels(self) -> int:
        """Of the latent."""
        found = self.shape[self.axis]
        assert found is not None
        return found

    def latent_shape(self) -> tuple[int, ...]:
        """The shape of ``x_t``."""
        rows, columns = self.asked.grid
        sides = iter((rows, columns) if self.shape.count(None) == 2 else (rows * columns,))
        return tuple(next(sides) if side is None else side for side in self.shape)

    def words(self, number: int, *shape: int) -> Tensor:
        """Seeded features of a prompt, ``(1, words, width)`` if no shape is given; other ones for each number."""
        generator = torch.Generator().manual_seed(1000 * self.asked.seed + number)
        made = torch.randn(*(shape or (1, _WORDS, _WIDTH)), generator=generator)
        return made.to(self.device, self.asked.dtype)

    def mask(self) -> Tensor:
        """Of a prompt: every word counts."""
        return torch.ones(1, _WORDS, dtype=torch.bool, device=self.device)

    @classmethod
    def scheduler(cls, asked: Asked) -> Any:
        """A scheduler of upstream's kind with its times set. Flow matching by Euler steps, if not said otherwise."""
        made = diffusers("FlowMatchEulerDiscreteScheduler")(shift=asked.shift, stochastic_sampling=asked.stochastic)
        made.set_timesteps(asked.steps)
        return made

    @classmethod
    def schedule(cls, asked: Asked) -> Schedule:
        """Times and step sizes of :meth:`scheduler`."""
        made = cls.scheduler(asked)
        sigmas = made.sigmas.float()[: asked.steps + 1]
        guided = (asked.scale > 1.0,) * asked.steps
        return Schedule(tuple(made.timesteps.tolist()), (sigmas[:-1] - sigmas[1:]).abs(), guided)

    def pipeline(self) -> Any:
        """Upstream's pipeline with a scheduler of its own: its class, without its ``__init__`` and its weights."""
        return self.shell(**self.parts())

    def parts(self) -> dict[str, Any]:
        """What the pipeline's ``__init__`` would have set and the loop reads."""
        return {"scheduler": self.scheduler(self.asked), "transformer": self.network}

    def shell(self, **parts: Any) -> Any:
        """An object of upstream's class that has these parts."""
        found: Any = getattr(importlib.import_module(f"vllm_omni.diffusion.models.{self.module}"), self.pipeline_class)
        plain = {
            "interrupt": False,
            "device": self.device,
            "joint_attention_kwargs": None,
            "attention_kwargs": None,
            "do_classifier_free_guidance": self.asked.scale > 1.0,
            "guidance_scale": self.asked.scale,
        }
        # Upstream's properties cannot be set, but hidden by a class above.
        hides = {name: part for name, part in parts.items() if isinstance(getattr(found, name, None), property)}
        made: Any = type(str(found.__name__), (found,), plain | hides)
        pipeline = made.__new__(made)
        nn.Module.__init__(pipeline)
        pipeline.od_config = SimpleNamespace(dtype=self.asked.dtype)
        # In their own order: a network that has two names goes by the first, and must do so on every rank.
        for name, part in parts.items():
            if name not in hides:
                setattr(pipeline, name, part)
        if hasattr(pipeline, "set_progress_bar_config"):
            pipeline.set_progress_bar_config(disable=True)
        return pipeline

    def denoise(self, pipeline: Any, x_0: Tensor) -> Tensor:
        """Upstream's loop from ``x_0``, by its own method; the final latent."""
        raise NotImplementedError

    def request(self, x_0: Tensor) -> SimpleNamespace:
        """What a pipeline's ``forward`` reads of a request that hands over its noise and wants the latent back."""
        parameters = SimpleNamespace(
            height=None,
            width=None,
            num_frames=None,
            num_inference_steps=self.asked.steps,
            guidance_scale=self.asked.scale,
            guidance_scale_provided=True,
            cfg_normalize=False,
            sigmas=None,
            seed=None,
            generator=None,
            latents=x_0,
            num_outputs_per_prompt=1,
            max_sequence_length=None,
            strength=None,
            output_type="latent",
            extra_args={"enable_prompt_rewrite": False},
        )
        prompt = {"prompt": self.branches[0], "negative_prompt": self.branches[1]}
        return SimpleNamespace(prompts=[prompt], sampling_params=parameters)

    def encoded(self, prompt: Any, **_: Any) -> tuple[Tensor, Tensor]:
        """In place of ``encode_prompt``: the features of the branch whose name the prompt is, and their positions."""
        words = prompt if isinstance(prompt, str) else prompt[0]
        features = self.prompts[words if words in self.prompts else self.branches[1]]
        return features, features.new_zeros(features.shape[1], 3)

    def branch_of(self, call: Mapping[str, Any]) -> str:
        """Which branch upstream's ``predict_noise`` is called for: the one whose prompt it is handed."""
        for branch, prompt in self.prompts.items():
            if call[self.prompt] is prompt:
                return branch
        raise LookupError(f"{self.name}: predict_noise was called with a prompt of no branch")

    def latent_in(self, call: Mapping[str, Any]) -> Tensor:
        """``x_t`` in a call of ``predict_noise``."""
        latent: Tensor = call[self.latents]
        return latent

    def with_latent(self, call: Mapping[str, Any], x_t: Tensor) -> dict[str, Any]:
        """The same call at another ``x_t``."""
        return dict(call) | {self.latents: x_t}


def stand_in_for(*names: str) -> None:
    """Empty modules for what upstream imports and no loop uses: its server, and packages that are not there."""
    for name in names:
        package, _, _ = name.partition(".")
        missing = package in _stand_ins or name.startswith(_SERVER) or importlib.util.find_spec(package) is None
        if name in sys.modules or not missing:
            continue
        parent, _, own = name.rpartition(".")
        sys.modules[name] = module = _Empty(name)
        module.__path__ = []
        if not name.startswith(_SERVER):
            _stand_ins.add(package)
        if parent:
            setattr(sys.modules[parent], own, module)


class _Empty(types.ModuleType):
    """A module in which every name means a class of nothing."""

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return type(name, (), {})


def diffusers(name: str) -> Any:
    """A class of diffusers."""
    return getattr(importlib.import_module("diffusers"), name)


class StandIn(nn.Module):
    """Stands for a transformer: one layer over latents, time and prompt. It returns a tuple, as they do."""

    def __init__(self, channels: int, axis: int, dtype: torch.dtype) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(1)
        mix, read = (torch.randn(rows, channels, generator=generator) / 4 for rows in (channels, _WIDTH))
        self.mix = nn.Parameter(mix.to(dtype), requires_grad=False)
        self.read = nn.Parameter(read.to(dtype), requires_grad=False)
        self.axis = axis
        # What pipelines ask of a transformer.
        self.config = SimpleNamespace(in_channels=channels, guidance_embeds=False, patch_size=(1, 2, 2))
        self.dtype, self.guidance_embeds, self.in_channels = dtype, None, channels

    def forward(
        self, hidden_states: Tensor, timestep: Tensor, encoder_hidden_states: Tensor, *_: Any, **__: Any
    ) -> tuple[Tensor]:
        latents = hidden_states.movedim(self.axis, -1)[..., : self.mix.shape[0]]
        each = (len(latents),) + (1,) * (latents.ndim - 2) + (-1,)
        told = (encoder_hidden_states.mean(1) @ self.read).reshape(each)
        time = torch.sin(timestep.reshape(len(timestep), -1)[:, :1]).to(latents.dtype).reshape(each)
        return (torch.tanh(latents @ self.mix + told + time).movedim(-1, self.axis),)
