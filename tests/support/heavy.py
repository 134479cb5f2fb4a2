"""Large libraries, and the only files that import each, by any spelling."""

HEAVY = {
    "cyclonedx": {"packager/bundle/documents/sbom.py"},
    "h11": {"runtimes/server/listen.py"},
    "huggingface_hub": {"packager/checkpoint/hub.py", "packager/checkpoint/model_card.py"},
    "llama_cpp": {"runtimes/backends/gguf/engine.py"},
    "model_signing": {"packager/bundle/signing.py"},
    "onnx": {"packager/formats/onnx/nodes.py"},
    "onnxruntime": {"runtimes/backends/onnx/session.py"},
    "pynvml": {"packager/measurement/gpu_meter.py", "packager/devices/nvidia.py"},
    "torch": {
        "packager/devices/cpu_benchmark.py",  # a process of its own
        "packager/formats/gptq/layer.py",
        "packager/formats/gptq/layers.py",
        "packager/formats/quant/gptq.py",
        "packager/formats/quant/products.py",
        "runtimes/backends/gptq/backend.py",
        "runtimes/backends/gptq/device.py",
        "runtimes/backends/gptq/files.py",
        "runtimes/backends/gptq/linear.py",
        "runtimes/backends/gptq/model.py",
        "runtimes/backends/gptq/cuda_graphs.py",
        "runtimes/backends/gptq/tiles.py",
    },
    "rich": {"packager/cli/progress.py", "packager/cli/result.py"},
    "starlette": {"runtimes/server/app.py"},
    "tqdm": set(),
    "transformers": set(),
    "uvicorn": {"runtimes/server/listen.py"},
}
