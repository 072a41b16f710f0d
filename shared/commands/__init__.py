"""What each command does; `shared.cli` has their flags."""
