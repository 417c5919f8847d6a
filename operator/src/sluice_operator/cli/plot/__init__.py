"""`sluice rollout plot`: a rollout as a picture, drawn as SVG by hand, so that it needs no plotting library."""
