package notify

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"mime/quotedprintable"
	"os"
	"os/exec"
	"strings"
	"syscall"
	"time"

	"github.com/bailment/bailment/internal/policy"
)

var (
	errNoCommand = errors.New("the server's configuration has no notify.mail")
	errCommand   = errors.New("the mail command failed, or didn't end in time")
)

// letter is a message as a program like sendmail -t takes it: Internet Message Format (RFC 5322) with the line ends of this system.
func letter(t policy.Notify, m *Message, from string) ([]byte, error) {
	var b bytes.Buffer
	if from != "" {
		fmt.Fprintf(&b, "From: %s\n", from)
	}
	fmt.Fprintf(&b, "To: %s\n", strings.Join(t.To, ",\n "))
	fmt.Fprintf(&b, "Subject: %s\n", m.Subject())
	fmt.Fprintf(&b, "Date: %s\n", m.Time.Format("Mon, 02 Jan 2006 15:04:05 -0700"))
	// The same each time, so that one that is sent twice is seen to be one.
	fmt.Fprintf(&b, "Message-ID: <%s.%d.%s@%s>\n", t.Name, m.Entry, strings.TrimPrefix(m.Genesis, "sha256:"), m.Environment)
	// Nobody's absence is to answer it (RFC 3834).
	b.WriteString("Auto-Submitted: auto-generated\nMIME-Version: 1.0\nContent-Type: text/plain; charset=utf-8\nContent-Transfer-Encoding: quoted-printable\n\n")
	w := quotedprintable.NewWriter(&b)
	if _, err := w.Write([]byte(m.Text())); err != nil {
		return nil, err
	}
	if err := w.Close(); err != nil {
		return nil, err
	}
	return bytes.ReplaceAll(b.Bytes(), []byte("\r\n"), []byte("\n")), nil
}

// afterKill is how long the command's pipes are waited for when it was killed.
const afterKill = time.Second

// mail has the command send a letter. No shell reads anything of it, and it gets PATH and HOME of the server's environment only.
func (n *Notifier) mail(ctx context.Context, t policy.Notify, m *Message) error {
	if len(n.cfg.Mail) == 0 {
		return permanent{errNoCommand}
	}
	body, err := letter(t, m, n.cfg.From)
	if err != nil {
		return permanent{err}
	}
	cmd := exec.CommandContext(ctx, n.cfg.Mail[0], n.cfg.Mail[1:]...)
	cmd.Stdin = bytes.NewReader(body)
	cmd.Dir = "/"
	cmd.Env = []string{"PATH=" + os.Getenv("PATH"), "HOME=" + os.Getenv("HOME")}
	// It may start others, which end with it.
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	cmd.Cancel = func() error { return syscall.Kill(-cmd.Process.Pid, syscall.SIGKILL) }
	cmd.WaitDelay = afterKill
	if err := cmd.Run(); err != nil {
		var ended *exec.ExitError
		if errors.As(err, &ended) && ended.Exited() {
			return fmt.Errorf("the mail command ended with code %d", ended.ExitCode())
		}
		return errCommand
	}
	return nil
}
