"""Environment variables: which matter, which are a rank's own, and that no other value leaves the process."""

from __future__ import annotations

import pytest

from verify.environment.variables import MATTERS, bit_variables, can_change_bits, is_own, other_variables


def test_each_has_a_reason() -> None:
    assert min(map(len, MATTERS.values())) > 14
    assert list(MATTERS) == sorted(MATTERS)


@pytest.mark.parametrize(
    "name",
    [
        *(
            "ONEDNN_DEFAULT_FPMATH_MODE",
            "DNNL_MAX_CPU_ISA",
            "MKL_ENABLE_INSTRUCTIONS",
            "MKL_CBWR",
            "ATEN_CPU_CAPABILITY",
        ),
        *("TORCH_CUDNN_V8_API_DISABLED", "TORCH_ALLOW_TF32_CUBLAS_OVERRIDE", "PYTORCH_TUNABLEOP_ENABLED"),
        *("CUBLAS_WORKSPACE_CONFIG", "CUBLASLT_WORKSPACE_SIZE", "NVIDIA_TF32_OVERRIDE", "NCCL_BUFFSIZE", "NCCL_ALGO"),
        *("OMP_NUM_THREADS", "KMP_DETERMINISTIC_REDUCTION", "OPENBLAS_CORETYPE", "LD_PRELOAD", "GLIBC_TUNABLES"),
        *("MALLOC_PERTURB_", "TRITON_F32_DEFAULT", "CUDA_LAUNCH_BLOCKING", "TORCHINDUCTOR_MAX_AUTOTUNE"),
    ],
)
def test_it_can_change_bits(name: str) -> None:
    assert can_change_bits(name)
    assert not is_own(name)
    assert name not in other_variables({name: "1"})
    assert bit_variables({name: "1"}) == {name: "1"}


@pytest.mark.parametrize(
    "name",
    [
        *("RANK", "LOCAL_RANK", "OMPI_COMM_WORLD_RANK", "SLURM_PROCID", "SLURMD_NODENAME", "PMI_RANK", "PWD"),
        *("SSH_CLIENT", "CUDA_VISIBLE_DEVICES", "GOMP_CPU_AFFINITY", "NCCL_SOCKET_IFNAME", "PYTHONHASHSEED"),
        *("HOSTNAME", "VLLM_DP_RANK"),
    ],
)  # fmt: skip
def test_it_is_a_ranks_own(name: str) -> None:
    assert is_own(name)
    assert not can_change_bits(name)
    assert other_variables({name: "1"}) == {}


@pytest.mark.parametrize(
    "name", ["TORCH_HOME", "CUDA_PATH", "TRITON_CACHE_DIR", "TORCH_LOGS", "NCCL_API_KEY", "MY_TOKEN"]
)
def test_where_things_are_and_secrets_are_told_by_name_only(name: str) -> None:
    assert bit_variables({name: "value"}) == {}
    (digest,) = other_variables({name: "value"}).values()
    assert digest != other_variables({name: "another value"})[name]
    assert "value" not in digest


def test_which_gpus_are_shown_is_shown() -> None:
    assert bit_variables({"CUDA_VISIBLE_DEVICES": "1"}) == {"CUDA_VISIBLE_DEVICES": "1"}


def test_a_value_that_is_no_text() -> None:
    assert other_variables({"ODD": "\udcff"})
