"""Files that are whole or not there, full disks, fingerprints, columns of lists."""
