"""Click-through-rate networks that ReLoop2 (KDD 2023) corrects: DCNv2, DeepFM, DIN, FiBiNET, SDIM. Networks only."""
