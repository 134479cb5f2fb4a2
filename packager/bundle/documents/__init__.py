"""The texts that go with a bundle."""
