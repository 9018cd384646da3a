package lab

//go:generate go tool bpf2go -cc clang-19 -strip llvm-strip-19 -go-package lab -target amd64,arm64 -cflags "-O2 -g -Wall -Wextra -Wno-unused-parameter -Werror -I../../vmlinux" recycle ../../bpf/recycle.bpf.c
