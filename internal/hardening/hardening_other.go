//go:build !linux

package hardening

import "errors"

func disableCoreDumps() error { return errors.New("not supported on this system") }

func lockMemory() error { return errors.New("not supported on this system") }

func forgetCode() {}
