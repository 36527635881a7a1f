"""What `tests.mutation` examines: each file with the tests that cover it, quick ones first."""

PLAN: dict[str, list[str]] = {
    "tokenizer/losses.py": ["tests/tokenizer/test_losses.py"],
    "tokenizer/quantizer.py": ["tests/tokenizer/test_quantizer.py"],
    "tokenizer/codebook.py": ["tests/tokenizer/test_codebook.py", "tests/tokenizer/test_quantizer.py"],
    "generators/gan/losses.py": ["tests/generators/gan/test_losses.py"],
    "generators/gan/init_from.py": ["tests/generators/gan/test_families.py"],
    "tokenizer/bitwise.py": ["tests/tokenizer/test_bitwise.py"],
    "tokenizer/tokens.py": ["tests/tokenizer/test_bitwise.py", "tests/tokenizer/test_codebook.py"],
    "star/model/heads.py": ["tests/star/model/test_heads.py", "tests/star/sampling/test_sampler.py"],
    "star/sampling/chance.py": ["tests/star/sampling/test_sampler.py"],
    "star/sampling/sampler.py": ["tests/star/sampling/test_sampler.py"],
    "star/sampling/masked_decoding.py": ["tests/star/sampling/test_masked_decoding.py"],
    "star/training/targets.py": ["tests/star/training/test_targets.py"],
    "eval/metrics/distances.py": ["tests/eval/test_distances.py"],
    "eval/metrics/manifold.py": ["tests/eval/test_manifold.py"],
    "eval/metrics/resampling.py": ["tests/eval/test_estimates.py", "tests/eval/test_metrics.py"],
    "eval/metrics/estimates.py": ["tests/eval/test_estimates.py"],
}

# file -> (line's text, change) -> why nobody could see it
EQUIVALENT: dict[str, dict[tuple[str, str], str]] = {
    "tokenizer/losses.py": {
        (
            "return (wanted / (pushed + 1e-4)).clamp(max=1e4).detach()",
            "no detach",
        ): "both gradients come without a graph, so there is nothing to detach",
        (
            "for a, b in zip(self._features(image_B3HW), self._features(target_B3HW), strict=True)",
            "True to False",
        ): "the same network gives as many states",
    },
    "tokenizer/quantizer.py": {
        (
            "return int(np.argmin(np.abs(ticks - k / max(scale_count - 1, 1))))",
            "abs to square",
        ): "the nearest is the same by the square; the ties that rounding decides are tested",
    },
    "tokenizer/codebook.py": {
        (
            "if not first and self.config.scale_floor > 0:",
            "Gt to GtE",
        ): "at a floor of 0 no scale is below it",
    },
    "star/model/heads.py": {
        ("if 0 < top_k < logits_BlV.shape[-1]:", "Lt to LtE"): "the smallest of all removes nothing",
    },
    "star/sampling/masked_decoding.py": {
        (
            "canvas = PartialScale(start, torch.full((B, length), -1, device=logits_BlV.device))",
            "1 to 2",
        ): "unknown is whatever is below 0",
    },
    "eval/metrics/distances.py": {
        (
            "ones_N1, ones_M1 = (torch.ones(count, 1, dtype=torch.float64) for count in (N, M))",
            "1 to 2",
        ): "a second resample equal to the first, of which the first is taken",
    },
    "eval/metrics/manifold.py": {
        (
            "return squared_NM.clamp_(min=0)",
            "no clamp_",
        ): "what rounding makes negative lies inside every ball as 0 does",
    },
}
