package devserver

import "syscall"

// OwnGroup puts the process into a group of its own, so that nothing of it can
// be left behind, and lets it die with us: a test that runs into its timeout
// panics without any cleanup.
func OwnGroup() *syscall.SysProcAttr {
	return &syscall.SysProcAttr{Setpgid: true, Pdeathsig: syscall.SIGKILL}
}
