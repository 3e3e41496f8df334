"""Small pieces that every room needs: files, progress bars, cards, the data error, who writes."""
