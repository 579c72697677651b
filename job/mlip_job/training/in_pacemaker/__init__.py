"""What pacemaker imports: this folder is on the module path of its process, and nothing else is."""
