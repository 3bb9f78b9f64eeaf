package hardening

import (
	"reflect"
	"testing"
)

// Code and constants are what is mapped of the program's own file and can't be written.
func TestCodeOf(t *testing.T) {
	const maps = `00400000-00c9e000 r-xp 00000000 fe:00 123                    /usr/bin/bail ment
00c9e000-01a3a000 r--p 0089e000 fe:00 123                    /usr/bin/bail ment
01a3a000-01ae8000 rw-p 0163a000 fe:00 123                    /usr/bin/bail ment
01ae8000-01b5d000 rw-p 00000000 00:00 0
c000000000-c000800000 rw-p 00000000 00:00 0
7f5fa6db6000-7f5fa6f0c000 r-xp 00026000 fe:00 9              /usr/lib/libc.so.6
7f5fa6f83000-7f5fa6f85000 r-xp 00000000 00:00 0              [vdso]
zz-00 r--p 00000000 fe:00 123                                /usr/bin/bail ment
`
	want := [][2]uintptr{{0x400000, 0xc9e000}, {0xc9e000, 0x1a3a000}}
	if got := codeOf(maps, "/usr/bin/bail ment"); !reflect.DeepEqual(got, want) {
		t.Errorf("got %x", got)
	}
	for _, other := range []string{"/usr/bin/bail", "/bin/other"} {
		if got := codeOf(maps, other); len(got) != 0 {
			t.Errorf("of %q: %x", other, got)
		}
	}
}

// What the loader of a program wrote into its constants is not in its file, and stays, whether it is in memory or was swapped out.
func TestCodeOfALoadedProgram(t *testing.T) {
	mapping := func(line, anonymous, swap string) string {
		return line + "\nSize:                 64 kB\nRss:                  64 kB\nAnonymous:             " + anonymous + " kB\nSwap:                  " + swap +
			" kB\nVmFlags: rd mr mw me sd\n"
	}
	smaps := mapping("55d0c0000000-55d0c0010000 r-xp 00000000 fe:00 123    /usr/bin/bailment", "0", "0") +
		mapping("55d0c0010000-55d0c0020000 r--p 00010000 fe:00 123    /usr/bin/bailment", "0", "0") +
		mapping("55d0c0020000-55d0c0030000 r--p 00020000 fe:00 123    /usr/bin/bailment", "64", "0") +
		mapping("55d0c0030000-55d0c0040000 r--p 00030000 fe:00 123    /usr/bin/bailment", "0", "4") +
		mapping("55d0c0040000-55d0c0050000 rw-p 00040000 fe:00 123    /usr/bin/bailment", "64", "0") +
		mapping("7f5fa6f83000-7f5fa6f85000 r-xp 00000000 00:00 0      [vdso]", "8", "0")
	want := [][2]uintptr{{0x55d0c0000000, 0x55d0c0010000}, {0x55d0c0010000, 0x55d0c0020000}}
	if got := codeOf(smaps, "/usr/bin/bailment"); !reflect.DeepEqual(got, want) {
		t.Errorf("got %x", got)
	}
}

// What a program does not execute any more is not held in its memory, and it goes on.
func TestTrim(t *testing.T) {
	all := code("smaps")
	if len(all) < 2 {
		t.Fatalf("the program's code is not found: %x", all)
	}
	size, sum := 0, 0
	for _, m := range all {
		for i, b := range mapped(m) {
			if i%4096 == 0 {
				sum += int(b)
			}
		}
		size += int(m[1]-m[0]) / 1024
	}
	before := status("RssFile:")
	Trim()
	after := status("RssFile:")
	if before < size || after > before-size/3 {
		t.Errorf("%d KiB of code were all read (%d): resident were %d KiB, then %d", size, sum, before, after)
	}
}
