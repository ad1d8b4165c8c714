"""SpecVQGAN: sound for silent video, and sound as tokens (Iashin & Rahtu, BMVC 2021, arXiv 2110.08791)."""
