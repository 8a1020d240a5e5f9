"""Motion clips: read and write files of them, and draw windows of frames."""
