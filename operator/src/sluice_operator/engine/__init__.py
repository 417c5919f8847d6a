"""The level-triggered engine: watch, cache, queue, observe, plan, execute. Knows no kind of ours by name."""
