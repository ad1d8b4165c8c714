"""Makes this folder importable (``golden_cases``) for the tests below it."""
