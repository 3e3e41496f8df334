"""Pretrained language models: loading, adapters, windows, cached features, the AWD-LSTM."""
