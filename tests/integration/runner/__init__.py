"""Tests of whole jobs in a worker of this process, which they share."""
