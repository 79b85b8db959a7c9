"""What each property of a combine claims, in a sentence for who has not read ``verify/fuzz/properties.py``."""

from __future__ import annotations

CLAIMS = {
    "exact_cases": "where arithmetic is exact, the one right answer comes out",
    "completes": "no input raises an exception",
    "ranks_agree": "equal inputs give equal bytes on every rank",
    "gathered": "inputs that came out of an all_gather give the same bytes",
    "shape_and_dtype": "the result has the shape and dtype of the branches",
    "run_to_run": "the same inputs give the same bytes again",
    "freed_memory": "what lies in freed memory does not matter",
    "inputs_unchanged": "the branches are not written to",
    "concurrent_work": "other work on the machine does not change a byte",
    "other_stream": "another CUDA stream gives the same bytes",
    "cuda_graph": "a replayed CUDA graph gives the same bytes",
    "oracle": "the result is the formula's in float64, within a derived bound",
    "scale_one": "text scale 1 gives the gen branch back",
    "renorm_never_grows": "the renorm makes no element and no norm greater",
    "renorm_min_one": "renorm_min 1 leaves plain guidance",
    "monotone_clamp": "a greater renorm_min makes no element smaller",
    "one_factor": "one renorm group is multiplied by one number",
    "image_scale_one": "image scale 1 equals text guidance alone",
    "image_guidance": "text_channel guides by the image after the renorm",
    "non_finite": "NaN and infinity go where the formula sends them",
    "rows_independent": "with a renorm for each token, a token depends on itself alone",
    "guided_steps_agree": "every rank guides the same steps",
}
