"""Other people's formats of demonstrations, one file or family of files for each."""
