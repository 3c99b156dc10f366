//go:build unix && !linux

package devserver

import "syscall"

// ownGroup puts the process into a group of its own, so that nothing of it can
// be left behind.
func ownGroup() *syscall.SysProcAttr { return &syscall.SysProcAttr{Setpgid: true} }
