"""Requests drawn by hypothesis: any that is valid."""

from __future__ import annotations

from hypothesis import strategies as st

from verify.request import RENORM_TYPES, DenoiseRequest

requests = st.builds(
    DenoiseRequest,
    height=st.integers(1, 256).map(lambda n: 16 * n),
    width=st.integers(1, 256).map(lambda n: 16 * n),
    num_timesteps=st.integers(2, 1000),
    timestep_shift=st.floats(1e-3, 1e3),
    cfg_interval=st.tuples(st.floats(0, 1), st.floats(0, 1)).map(lambda bounds: tuple(sorted(bounds))),
    cfg_text_scale=st.floats(1.0, 1e3, exclude_min=True),
    cfg_img_scale=st.floats(1.0, 1e3),
    cfg_renorm_type=st.sampled_from(RENORM_TYPES),
    cfg_renorm_min=st.floats(0, 1),
    seed=st.integers(0, 2**63 - 1),
)
