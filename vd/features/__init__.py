"""Features: geometry of a clip, backbone, engines, store."""
