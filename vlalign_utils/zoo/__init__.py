"""Recipes become embedded checkpoints: small vision-language models trained from scratch."""
