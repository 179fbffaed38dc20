package artifact

import (
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"strconv"
	"strings"
)

// Inputs is what decides a result, as named values: it is hashed into a cache
// key, and kept beside what is cached, so that a human can be told which value
// differs. The text has one line for each value, both parts quoted as in Go. A
// sensitive value is never in it, only its name.
type Inputs string

// Add appends a value.
func (in *Inputs) Add(name, value string) {
	*in += Inputs(strconv.Quote(name) + " " + strconv.Quote(value) + "\n")
}

// AddFiles appends the lines of FileLine, of any number of files at once.
func (in *Inputs) AddFiles(lines []byte) { *in += Inputs(lines) }

// FileLine is the line of a file: its type, mode, link target and the digest of
// what open reads, but no time, owner or place. name says what it is to the step.
func FileLine(name string, mode fs.FileMode, link string, open func() (io.ReadCloser, error)) ([]byte, error) {
	var value string
	switch kept := mode & (fs.ModePerm | fs.ModeSetuid | fs.ModeSetgid | fs.ModeSticky); {
	case mode.Type() == fs.ModeSymlink: // its mode differs between systems and means nothing
		value = "-> " + link
	case mode.IsRegular():
		f, err := open()
		if err != nil {
			return nil, err
		}
		h := sha256.New()
		_, err = io.Copy(h, f)
		if err = errors.Join(err, f.Close()); err != nil {
			return nil, err
		}
		value = fmt.Sprintf("%s %v sha256:%x", mode.Type(), kept, h.Sum(nil))
	default:
		value = fmt.Sprintf("%s %v", mode.Type(), kept)
	}
	var in Inputs
	in.Add(name, value)
	return []byte(in), nil
}

// Digest is the inputs' hash.
func (in Inputs) Digest() Digest {
	sum := sha256.Sum256([]byte(in))
	return Digest("sha256:" + hex.EncodeToString(sum[:]))
}

// Difference names the first value in which two inputs differ, with both
// values; "" where one of them lacks it. name is "" if they do not differ.
func (in Inputs) Difference(old Inputs) (name, was, is string) {
	a, b := old.values(), in.values()
	for i := 0; i < len(a) || i < len(b); i++ {
		switch {
		case i >= len(a):
			return b[i][0], "", b[i][1]
		case i >= len(b):
			return a[i][0], a[i][1], ""
		case a[i] == b[i]:
		case a[i][0] == b[i][0]:
			return b[i][0], a[i][1], b[i][1]
		default: // one was added or taken away: which is it?
			for _, v := range a[i:] {
				if v[0] == b[i][0] {
					return a[i][0], a[i][1], ""
				}
			}
			return b[i][0], "", b[i][1]
		}
	}
	return "", "", ""
}

// All are the names and values, in their order.
func (in Inputs) All() [][2]string { return in.values() }

// values are name and value of each line; a line that Add did not write is a
// value without a name.
func (in Inputs) values() (out [][2]string) {
	if in == "" {
		return nil
	}
	for _, line := range strings.Split(strings.TrimSuffix(string(in), "\n"), "\n") {
		quoted, err := strconv.QuotedPrefix(line)
		if err != nil {
			out = append(out, [2]string{"", line})
			continue
		}
		name, _ := strconv.Unquote(quoted) // QuotedPrefix saw to it
		value, err := strconv.Unquote(strings.TrimPrefix(line[len(quoted):], " "))
		if err != nil {
			value = line[len(quoted):]
		}
		out = append(out, [2]string{name, value})
	}
	return out
}
