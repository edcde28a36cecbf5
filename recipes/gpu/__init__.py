"""Everything that is to be known of a GPU, by one command: ../gpu.sh tells how."""
