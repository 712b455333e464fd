"""The zoo: small vision-language models trained from scratch by the recipes in zoo/recipes."""
