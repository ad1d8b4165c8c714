"""What ``streambank demo NAME`` shows: one small file per method, and one runner for all."""
