"""An artifact to its window proof, quality, speed and memory."""
