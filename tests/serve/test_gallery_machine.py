"""A few random histories in every run; ``gallery_machine`` is there to be run for as long as one likes."""

from __future__ import annotations

from gallery_machine import GalleryMachine
from hypothesis import HealthCheck, settings

TestGallery = GalleryMachine.TestCase
TestGallery.settings = settings(
    max_examples=20, stateful_step_count=25, deadline=None, suppress_health_check=list(HealthCheck)
)
