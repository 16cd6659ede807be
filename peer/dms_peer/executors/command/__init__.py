"""The executor `command`: a program of the owner's runs each job, under a supervisor that outlives the peer."""
