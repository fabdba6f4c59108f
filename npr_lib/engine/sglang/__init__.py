"""The NPR Engine on stock SGLang (docs/sglang.md): a plugin, and an engine that talks to it."""
