"""A release of vllm-omni that cannot be driven is unknown, exit status 3: version, what it lacks, what was tried."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from verify.report.documents.reading import document_of

ROOT = Path(__file__).parents[2]
BAGEL = "vllm_omni/diffusion/models/bagel/bagel_transformer.py"
# As little as is imported and called on the way to class Bagel.
RELEASE = {
    "vllm/__init__.py": "",
    "vllm/config.py": (
        "from contextlib import nullcontext\n"
        "from types import SimpleNamespace\n"
        "CompilationConfig = DeviceConfig = VllmConfig = SimpleNamespace\n"
        "CompilationMode = SimpleNamespace(NONE=0)\n"
        "set_current_vllm_config = nullcontext\n"
    ),
    "vllm_omni/platforms/__init__.py": "",
    "vllm_omni/platforms/interface.py": (
        "from types import SimpleNamespace\nOmniPlatform = object\nOmniPlatformEnum = SimpleNamespace(UNSPECIFIED=0)\n"
    ),
    "vllm_omni/__init__.py": "raise ImportError('the serving stack')\n",
    "vllm_omni/diffusion/attention/backends/sdpa.py": "class SDPAImpl:\n    forward_cuda = None\n",
    BAGEL: "class Bagel:\n    _combine_cfg = staticmethod(print)\n",
    "vllm_omni-0.99.1.dist-info/METADATA": "Metadata-Version: 2.1\nName: vllm-omni\nVersion: 0.99.1\n",
}


def run_with(folder: Path, release: dict[str, str]) -> tuple[int, str, str]:
    """Exit status, the document's notes and what was printed, of a run with such a release on the path."""
    for name, text in release.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text)
    command = [sys.executable, "-m", "verify", "run", "--target", "vllm_omni", "--json", str(folder / "out.json")]
    environment = os.environ | {"PYTHONPATH": str(folder)}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=120, check=False)
    document = json.loads((folder / "out.json").read_text())
    document_of(document)
    assert document["verdict"] == "unknown"
    return done.returncode, " ".join(document["notes"]), done.stdout


@pytest.mark.parametrize(
    ("module", "text", "said"),
    [
        (
            BAGEL,
            RELEASE[BAGEL],
            "vllm-omni 0.99.1 cannot be driven: tried as 0.30.0 (class Bagel lacks forward_single_branch); as 0.22.0 "
            "(class Bagel lacks forward_single_branch); as 0.18.0 (class Bagel lacks _forward_flow_single_branch); add "
            "an entry to verify/targets/vllm_omni/versions.py",
        ),
        pytest.param(
            BAGEL,
            "from vllm_omni.diffusion import mixin\n",
            "vllm-omni 0.99.1 cannot be driven: importing it and making its process groups raised ImportError: cannot "
            "import name 'mixin' from 'vllm_omni.diffusion' (unknown location); versions known to work: 0.18.0, "
            "0.22.0, 0.30.0",
            marks=pytest.mark.nightly,
        ),
        pytest.param(
            "vllm/config.py",
            "CompilationConfig = 1\n",
            "vllm-omni 0.99.1 cannot be driven: importing it and making its process groups raised AttributeError: "
            "module 'vllm.config' has no attribute 'CompilationMode'; versions known to work: 0.18.0, 0.22.0, 0.30.0",
            marks=pytest.mark.nightly,
        ),
    ],
    ids=["methods renamed", "module moved", "configuration changed"],
)
def test_a_release_that_cannot_be_driven(tmp_path: Path, module: str, text: str, said: str) -> None:
    status, notes, printed = run_with(tmp_path, RELEASE | {module: text})
    assert status == 3
    assert said in notes
    assert "0.99.1" in printed
    assert "Traceback" not in printed
