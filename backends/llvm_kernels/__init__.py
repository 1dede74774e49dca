"""Row programs as machine code for the CPU, by LLVM."""
