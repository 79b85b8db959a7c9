"""Which versions a release is installed with; nothing is installed here."""

from __future__ import annotations

import pytest
from install import PINS, pins_for


@pytest.mark.parametrize(
    ("release", "closure"), [("0.18.0", "0.18.0"), ("0.20.0", "0.22.0"), ("0.28.0", "0.30.0"), ("0.31.0", "0.30.0")]
)
def test_a_release_takes_the_closure_of_the_next_newer_one(release: str, closure: str) -> None:
    lines = (PINS / f"pins-{closure}.txt").read_text().split()
    assert len(pins_for(release)) == len(lines)
    assert pins_for(release) == pins_for(closure)


def test_what_a_release_pins_itself_wins_over_a_neighbours_closure() -> None:
    required = ["diffusers==0.38.0", "cache-dit == 1.3.0", "transformers>=5.5.3", "av==18.0.0; extra == 'dev'"]
    found = pins_for("0.26.0", required)
    assert (found["diffusers"], found["cache-dit"]) == ("0.38.0", "1.3.0")
    assert found["transformers"] == pins_for("0.30.0")["transformers"]
    assert "av" not in found


def test_a_file_of_its_own_wins_over_both() -> None:
    found = pins_for("0.24.0", ["transformers==1.0"])
    assert found["transformers"] == "5.8.1"


def test_a_closure_of_its_own_is_not_mixed_with_anything() -> None:
    assert pins_for("0.30.0", ["diffusers==1.0"]) == pins_for("0.30.0")
