"""The demo: the whole loop once, on real parts, told as a story. Also the end-to-end test."""
