"""Synthetic chats made by rule: tagged, deduplicated, split and described; the same inputs make the same bytes."""
