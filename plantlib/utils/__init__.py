"""Small pieces that every room needs: files, progress bars, cards, DataError, processes."""
