"""Row programs as kernels for the GPU, by Triton."""
