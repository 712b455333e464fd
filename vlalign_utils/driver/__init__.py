"""One loaded model: find its decoder, record, replay, edit; knows no file, data set or family."""
