"""What requests cost: prices of models, in US dollars as exact decimals."""
