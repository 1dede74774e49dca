"""Row programs as CUDA C++."""
