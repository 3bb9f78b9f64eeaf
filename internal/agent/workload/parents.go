package workload

import (
	"errors"
	"strconv"

	"golang.org/x/sys/unix"
)

// maxParentPath bounds the paths of ancestors, which are up to eight, in bytes: claims have 8 KiB for everything.
const maxParentPath = 512

// parents are the ancestors of the process, the nearest first, up to the first that has none here.
//
// Each step is safe from recycled numbers: the parent's directory is opened by the number that the child names, and the child
// names it still afterwards. A parent that ends is replaced at once as the parent of its children (by a reaper that was
// there before), and its number is free only after that, so the directory is the parent's. If the chain changes meanwhile it is
// read again from the beginning.
func (p *Process) parents() ([]any, error) {
	if p.dir == nil || p.in.proc == nil || p.in.cfg.Parents == 0 {
		return nil, nil
	}
	for range 3 {
		var chain []any
		whole := false
		err := with(p.dir, func(dir int) error {
			return with(p.in.proc, func(proc int) (err error) {
				chain, whole, err = climb(proc, dir, p.in.cfg.Parents)
				return err
			})
		})
		if err != nil {
			return nil, p.failed("the parents", err)
		}
		if whole {
			return chain, nil
		}
	}
	return nil, changed("lost its parents while they were looked at")
}

// climb goes up; whole says that nothing moved meanwhile. An error is about the process itself.
func climb(proc, dir, most int) (chain []any, whole bool, err error) {
	child, own := dir, false
	defer func() {
		if own {
			unix.Close(child)
		}
	}()
	before, err := readStat(child)
	if err != nil {
		return nil, false, err
	}
	for range most {
		if before.ppid <= 0 {
			return chain, true, nil
		}
		parent, err := openAt(proc, strconv.Itoa(int(before.ppid)), unix.O_PATH|unix.O_DIRECTORY)
		if err != nil {
			// /proc may hide it (hidepid): then nothing more is known, and what is missing is at the far end.
			return chain, !ended(err) || stillNames(child, before), nil
		}
		told, now, err := parentAt(parent, before.ppid)
		if err != nil || now.start > before.start || !stillNames(child, before) {
			unix.Close(parent)
			return nil, false, nil //nolint:nilerr // it ended, or isn't the parent any more: the chain is read again
		}
		if own {
			unix.Close(child)
		}
		child, own, before = parent, true, now
		chain = append(chain, told)
	}
	return chain, true, nil
}

func stillNames(child int, before stat) bool {
	now, err := readStat(child)
	return err == nil && now.ppid == before.ppid && now.start == before.start && !now.over()
}

// parentAt is what is told of an ancestor: number, user, and the path of its executable where the agent may look and finds the
// same file there. It is not measured: a chain would cost eight times what a process does.
func parentAt(dir int, pid int32) (map[string]any, stat, error) {
	now, err := readStat(dir)
	if err != nil {
		return nil, stat{}, err
	}
	uid, err := effectiveUID(dir)
	if err != nil {
		return nil, stat{}, err
	}
	told := map[string]any{"pid": int64(pid), "uid": int64(uid)}
	fd, err := openAt(dir, "exe", unix.O_PATH)
	if err != nil {
		if errors.Is(err, unix.EACCES) || errors.Is(err, unix.EPERM) || errors.Is(err, unix.ENOENT) {
			err = nil // not permitted, or a kernel thread, which has none
		}
		return told, now, err
	}
	defer unix.Close(fd)
	var st unix.Stat_t
	if unix.Fstat(fd, &st) == nil {
		if path := Confirmed(fd, &st); path != "" && len(path) <= maxParentPath {
			told["path"] = path
		}
	}
	return told, now, nil
}
