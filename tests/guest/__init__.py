"""What needs systemd, cgroup v2 and AppArmor: run in a virtual machine by `run.sh`."""
