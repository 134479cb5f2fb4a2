"""starpack's build side: from a StarCoder2 checkpoint to a bundle."""

from packager.blas import choose_kernels

choose_kernels()
