"""What `tests.mutation` examines: each file with the tests that cover it, quick ones first."""

PLAN: dict[str, list[str]] = {
    "tokenizer/losses.py": ["tests/tokenizer/test_losses.py"],
    "tokenizer/quantizer.py": ["tests/tokenizer/test_quantizer.py"],
    "tokenizer/codebook.py": ["tests/tokenizer/test_codebook.py", "tests/tokenizer/test_quantizer.py"],
    "generators/losses.py": ["tests/generators/test_losses.py"],
    "generators/adversaries.py": ["tests/generators/test_adversaries.py"],
    "star/sampler.py": ["tests/star/test_sampler.py"],
    "star/stable_sampler.py": ["tests/star/test_stable_sampler.py"],
    "star/teaching.py": ["tests/star/test_teaching.py"],
    "eval/distances.py": ["tests/eval/test_distances.py"],
    "eval/manifold.py": ["tests/eval/test_manifold.py"],
    "eval/resampling.py": ["tests/eval/test_estimates.py", "tests/eval/test_metrics.py"],
    "eval/estimates.py": ["tests/eval/test_estimates.py"],
}

# file -> (line's text, change) -> why nobody could see it
EQUIVALENT: dict[str, dict[tuple[str, str], str]] = {}
