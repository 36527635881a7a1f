"""How much a host asks of a GPU for one batch of pictures: what keeps a fast GPU waiting where batches are small."""

from star.eval.run.versus import Contender

LAUNCHES = ("cudaLaunchKernel", "cudaLaunchKernelExC", "cuLaunchKernel", "cuLaunchKernelEx", "cudaGraphLaunch")


def launches(side: Contender, batch: int, prompt: str = "a red apple") -> int:
    """Kernels and graphs that one batch launches on a GPU; on a CPU the calls of operators."""
    from torch.profiler import ProfilerActivity, profile

    kinds = [ProfilerActivity.CPU] + ([ProfilerActivity.CUDA] if side.device.type == "cuda" else [])
    with profile(activities=kinds) as profiler:
        side.generator.generate([prompt] * batch, seeds=range(batch), options=side.options)
    events = profiler.key_averages()
    wanted = LAUNCHES if side.device.type == "cuda" else None
    return sum(event.count for event in events if (event.key in wanted if wanted else event.key.startswith("aten::")))
