// Package file is the root holder of the development class: a root key in a file that only its
// owner can read.
//
// Guaranteed: the key is made once, never replaced; the file is durable before the key is used; a
// file that others could read or have replaced, or that isn't exactly in its format, is refused.
// Not guaranteed: protection from root, from whoever copies the disk, or from the process that has
// it open. That is why its descriptor says DevelopmentOnly.
//
// It implements keyring.Holder; see its README.
package file

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/base64"
	"encoding/hex"
	"errors"
	"io"
	"io/fs"
	"os"

	"golang.org/x/sys/unix"

	"github.com/bailment/bailment/internal/durable"
	"github.com/bailment/bailment/internal/keyring"
	"github.com/bailment/bailment/internal/problem"
	"github.com/bailment/bailment/internal/seal"
)

// Kind is the name of this kind of holder.
const Kind = "file"

// The format is three lines. The check catches a damaged file before its key is blamed on the
// database; it is a digest of the key, but stands beside the key itself.
//
//	bailment root key v1
//	key BASE64 OF 32 BYTES
//	check FIRST 8 BYTES OF SHA-256 OVER THE TWO LINES BEFORE, IN HEX
const (
	header      = "bailment root key v1\n"
	keyPrefix   = "key "
	checkPrefix = "check "
)

var size = len(header) + len(keyPrefix) + base64.StdEncoding.EncodedLen(seal.KeySize) + 1 + len(checkPrefix) + 16 + 1

// Holder holds a root key that was in a file. Safe for concurrent use.
type Holder struct {
	kek *seal.KEK
	id  string
}

var _ keyring.Holder = (*Holder)(nil)

// Create makes a new root key in a new file at path, durable when it returns. Reason exists if
// there is anything at path, which is then untouched.
func Create(path string, src *seal.Source) (*Holder, error) {
	key, err := src.Key(seal.KeySize)
	if err != nil {
		return nil, err
	}
	text := format(key)
	defer clear(text)
	if err := durable.CreateExclusive(path, text, 0o600); err != nil {
		if errors.Is(err, fs.ErrExist) {
			return nil, problem.Wrap(err, problem.ReasonExists, "create the root key").
				WithFix("use the root key that is there, or choose another path")
		}
		return nil, problem.Local(err, "create the root key")
	}
	// Read it back through the same door as after a restart: a file system that doesn't keep
	// modes (some mounts) is found out before anything is wrapped.
	return Open(path)
}

// Open reads the root key at path. It refuses anything but a regular file in the exact format,
// with mode 0600, owned by the user that this process runs as; a symbolic link is not followed.
func Open(path string) (*Holder, error) {
	text, err := read(path)
	if err != nil {
		return nil, err
	}
	defer clear(text)
	key, err := parse(text)
	if err != nil {
		return nil, problem.Wrap(err, problem.ReasonTampered, "root key file %s", path).
			WithFix("restore the root key file from where you keep its copy")
	}
	return newHolder(key)
}

func newHolder(key seal.Secret) (*Holder, error) {
	kek, err := seal.NewKEK(1, key)
	if err != nil {
		return nil, err
	}
	id, err := seal.Derive(key, nil, "bailment/root/file/id/v1", 16)
	if err != nil {
		return nil, err
	}
	return &Holder{kek: kek, id: hex.EncodeToString(id.Expose())}, nil
}

// Descriptor tells this key from others by 16 bytes derived from it.
func (h *Holder) Descriptor() keyring.Descriptor {
	return keyring.Descriptor{Kind: Kind, ID: h.id, DevelopmentOnly: true}
}

// Wrap implements keyring.Holder; it doesn't block.
func (h *Holder) Wrap(_ context.Context, context []byte, key seal.Secret) ([]byte, error) {
	return h.kek.Wrap(context, key)
}

// Unwrap implements keyring.Holder; it doesn't block.
func (h *Holder) Unwrap(_ context.Context, context []byte, wrapped []byte) (seal.Secret, error) {
	return h.kek.Unwrap(context, wrapped)
}

func read(path string) ([]byte, error) {
	// Without O_NONBLOCK, opening a named pipe would wait for its writer.
	f, err := os.OpenFile(path, os.O_RDONLY|unix.O_NOFOLLOW|unix.O_NONBLOCK, 0)
	switch {
	case errors.Is(err, unix.ELOOP):
		return nil, problem.New(problem.ReasonPermissions, "root key %s is a symbolic link", path).
			WithFix("name the file itself")
	case errors.Is(err, fs.ErrNotExist):
		return nil, problem.Wrap(err, problem.ReasonNotFound, "open the root key").
			WithFix("give the path of the root key that `bailment init` made")
	case err != nil:
		return nil, problem.Wrap(err, problem.ReasonPermissions, "open the root key").
			WithFix("run as the user who owns the file")
	}
	defer f.Close()
	// What is checked is what is read: the open file, not the name.
	var st unix.Stat_t
	if err := unix.Fstat(int(f.Fd()), &st); err != nil {
		return nil, problem.Wrap(err, problem.ReasonPermissions, "look at the root key %s", path)
	}
	if err := checkStat(path, &st, uint32(os.Geteuid())); err != nil {
		return nil, err
	}
	text := make([]byte, size+1)
	n, err := io.ReadFull(f, text)
	if !errors.Is(err, io.ErrUnexpectedEOF) && !errors.Is(err, io.EOF) && err != nil {
		return nil, problem.Wrap(err, problem.ReasonStore, "read the root key %s", path)
	}
	return text[:n], nil
}

func checkStat(path string, st *unix.Stat_t, euid uint32) error {
	switch {
	case st.Mode&unix.S_IFMT != unix.S_IFREG:
		return problem.New(problem.ReasonPermissions, "root key %s is not a regular file", path).
			WithFix("name the file itself")
	case st.Mode&^unix.S_IFMT != 0o600:
		return problem.New(problem.ReasonPermissions, "root key %s has mode %04o, want 0600", path, st.Mode&^unix.S_IFMT).
			WithFix("chmod 0600 %s, and ask who could read it until now", path)
	case st.Uid != euid:
		return problem.New(problem.ReasonPermissions, "root key %s belongs to user %d, but this runs as user %d", path, st.Uid, euid).
			WithFix("run as the user who owns the file")
	case st.Nlink != 1:
		return problem.New(problem.ReasonPermissions, "root key %s has %d names", path, st.Nlink).
			WithFix("remove its other hard links")
	}
	return nil
}

func format(key seal.Secret) []byte {
	b := make([]byte, 0, size)
	b = append(b, header+keyPrefix...)
	b = base64.StdEncoding.AppendEncode(b, key.Expose())
	b = append(b, '\n')
	sum := sha256.Sum256(b)
	b = append(b, checkPrefix...)
	b = hex.AppendEncode(b, sum[:8])
	return append(b, '\n')
}

// parse is strict by formatting again what it found. Its errors don't quote the text.
func parse(text []byte) (seal.Secret, error) {
	if len(text) != size {
		return seal.Secret{}, errors.New("it does not have the right length")
	}
	rest, ok := bytes.CutPrefix(text, []byte(header))
	if !ok {
		return seal.Secret{}, errors.New("it does not begin with \"bailment root key v1\"")
	}
	line, _, _ := bytes.Cut(rest, []byte("\n"))
	key64, ok := bytes.CutPrefix(line, []byte(keyPrefix))
	if !ok {
		return seal.Secret{}, errors.New("it has no key line")
	}
	raw := make([]byte, base64.StdEncoding.DecodedLen(len(key64)))
	n, err := base64.StdEncoding.Strict().Decode(raw, key64)
	key := seal.NewSecret(raw[:n])
	if err != nil || n != seal.KeySize {
		key.Wipe()
		return seal.Secret{}, errors.New("its key is not 32 bytes in base64")
	}
	again := format(key)
	defer clear(again)
	if !bytes.Equal(again, text) {
		key.Wipe()
		return seal.Secret{}, errors.New("its check does not fit: the file was changed")
	}
	return key, nil
}
