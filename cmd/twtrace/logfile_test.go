package main

import (
	"bytes"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/klauspost/compress/zstd"
	"golang.org/x/sys/unix"
)

// needDisk is for tests of the log's files, which are the same on every kernel: an
// emulated processor has better things to do.
func needDisk(t *testing.T) {
	t.Helper()
	needRoot(t)
	if testing.Short() {
		t.Skip("does not depend on the kernel")
	}
}

// formats are the names of a log that is written as it is, and compressed.
var formats = []string{"events.jsonl", "events.jsonl.zst"}

// logFiles lists the files of a log in the order of their names, which is that
// of time: the present one is the last.
func logFiles(t *testing.T, log string) []string {
	t.Helper()
	stem, suffix, _ := strings.Cut(filepath.Base(log), ".")
	files, err := filepath.Glob(filepath.Join(filepath.Dir(log), stem+"*."+suffix))
	if err != nil {
		t.Fatal(err)
	}
	return files
}

// readLog reads a file of a log, as far as it can be read.
func readLog(t *testing.T, path string) (data []byte, err error) {
	t.Helper()
	file, err := os.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer file.Close()
	if !strings.HasSuffix(path, ".zst") {
		return io.ReadAll(file)
	}
	decoder, err := zstd.NewReader(file)
	if err != nil {
		t.Fatal(err)
	}
	defer decoder.Close()
	return io.ReadAll(decoder)
}

// readLogs reads all files of a log, one after the other. Each must be whole and
// begin with a meta.
func readLogs(t *testing.T, files []string) []byte {
	t.Helper()
	var all []byte
	for _, file := range files {
		data, err := readLog(t, file)
		if err != nil {
			t.Fatalf("%s: %v", file, err)
		}
		if first, _, _ := bytes.Cut(data, []byte("\n")); !bytes.Contains(first, []byte(`"event":"meta"`)) {
			t.Errorf("%s begins with %.200s", file, first)
		}
		if !bytes.HasSuffix(data, []byte("\n")) {
			t.Errorf("%s ends with half a line", file)
		}
		all = append(all, data...)
	}
	return all
}

// until waits for something that is seen by asking.
func until(t testing.TB, what string, done func() bool) {
	t.Helper()
	for deadline := time.Now().Add(2 * time.Minute); !done(); time.Sleep(time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("%s: not within two minutes", what)
		}
	}
}

func refused() error { return attempt(unix.AF_INET, "127.0.0.1:1", unix.ECONNREFUSED) }

// TestRotation: under load no line is lost, torn or written twice where the log
// goes on in a new file, and none of the files is much larger than it may be.
func TestRotation(t *testing.T) {
	needDisk(t)
	for _, name := range formats {
		t.Run(name, func(t *testing.T) {
			n := newNetNS(t)
			log := filepath.Join(t.TempDir(), name)
			// A new file takes a disk longer than what goes into the smallest: hundreds
			// of them a second are more than it can take.
			maxSize, most := int64(1<<20), int64(1<<20+32<<10)
			if strings.HasSuffix(name, ".zst") {
				maxSize, most = 64<<10, 64<<10+1<<20 // 8 MiB of lines can wait to be compressed
			}
			tr := trace(t, "-o", "json", "--netns", strconv.Itoa(int(n.inode)), "--log", log, "--log-max-size", strconv.FormatInt(maxSize, 10))
			if err := churn(n, connections(t)); err != nil {
				t.Fatal(err)
			}
			checkLog(t, tr.stop())
			files := logFiles(t, log)
			if len(files) < 2 || files[len(files)-1] != log {
				t.Fatalf("files %q, want several, %s the last", files, log)
			}
			for _, file := range files {
				info, err := os.Stat(file)
				if err != nil {
					t.Fatal(err)
				}
				if info.Size() > most || file != log && info.Size() < maxSize {
					t.Errorf("%s has %d bytes, with --log-max-size %d", file, info.Size(), maxSize)
				}
			}
			printed, err := os.ReadFile(tr.stdout)
			if err != nil {
				t.Fatal(err)
			}
			if !bytes.Equal(readLogs(t, files), printed) {
				t.Errorf("the %d files together are not the lines of stdout", len(files))
			}
		})
	}
}

// TestReopen: on SIGHUP the log goes on in the file that has its name then, as
// logrotate wants it. Without a log it ends twtrace.
func TestReopen(t *testing.T) {
	needDisk(t)
	for _, name := range formats {
		t.Run(name, func(t *testing.T) {
			n := newNetNS(t)
			dir := t.TempDir()
			log, moved := filepath.Join(dir, name), filepath.Join(dir, "moved-"+name)
			tr := trace(t, "--netns", strconv.Itoa(int(n.inode)), "--log", log)
			for i := range 2 {
				if err := n.do(refused); err != nil {
					t.Fatal(err)
				}
				if i == 0 {
					if err := os.Rename(log, moved); err != nil {
						t.Fatal(err)
					}
					tr.signal(unix.SIGHUP)
					until(t, "the log is opened anew", func() bool { _, err := os.Stat(log); return err == nil })
				}
			}
			tr.end()
			lines := parseLines(t, log, readLogs(t, []string{moved, log}))
			checkLog(t, lines)
			if metas := len(of(lines, "meta")); metas != 2 {
				t.Errorf("%d meta lines, want one a file", metas)
			}
			for _, file := range []string{moved, log} {
				if got := len(of(parseLines(t, file, readLogs(t, []string{file})), "connect")); got != 1 {
					t.Errorf("%s has %d connects, want 1", file, got)
				}
			}
		})
	}
	tr := trace(t)
	tr.signal(unix.SIGHUP)
	if err := tr.wait(); err == nil || err.Error() != "signal: hangup" {
		t.Errorf("SIGHUP without a log: %v", err)
	}
}

// TestLogAge: a log that is old goes on in a new file, unless there is nothing in
// it.
func TestLogAge(t *testing.T) {
	needDisk(t)
	n := newNetNS(t)
	args := []string{"--netns", strconv.Itoa(int(n.inode)), "--log-max-age", "1s", "--log"}
	idle := filepath.Join(t.TempDir(), "events.jsonl")
	if code, stderr := status(t, twtrace(append(args, idle, "--duration", "3s")...)); code != 0 {
		t.Fatal(stderr)
	}
	for _, file := range logFiles(t, idle) { // more than one where a busy machine lost events
		if lines := readLines(t, file); len(lines) < 2 {
			t.Errorf("%s has nothing but %v", file, lines)
		}
	}
	log := filepath.Join(t.TempDir(), "events.jsonl")
	tr := trace(t, append(args, log)...)
	if err := n.do(refused); err != nil {
		t.Fatal(err)
	}
	until(t, "a new file", func() bool { return len(logFiles(t, log)) == 2 })
	tr.end()
	checkLog(t, parseLines(t, log, readLogs(t, logFiles(t, log))))
}

// TestLogKeep: of the files that rotation made, those of an earlier run too, the
// newest are kept; nothing else is removed.
func TestLogKeep(t *testing.T) {
	needDisk(t)
	n := newNetNS(t)
	dir := t.TempDir()
	const older = "events-2020-01-01T00-00-00.000000000Z.jsonl"
	foreign := []string{
		"events-2020-01-01.jsonl", "events-old.jsonl", older + ".zst", "a" + older, "events-a-2020-01-01T00-00-00.000000000Z.jsonl",
	}
	for _, name := range append(foreign, older) {
		if err := os.WriteFile(filepath.Join(dir, name), nil, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	log := filepath.Join(dir, "events.jsonl")
	tr := trace(t, "--netns", strconv.Itoa(int(n.inode)), "--log", log, "--log-max-size", "64K", "--log-keep", "2")
	if err := churn(n, 200); err != nil {
		t.Fatal(err)
	}
	tr.end()
	entries, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	var left, rotated []string
	for _, entry := range entries {
		if slices.Contains(append(foreign, "events.jsonl"), entry.Name()) {
			left = append(left, entry.Name())
		} else {
			rotated = append(rotated, entry.Name())
		}
	}
	if len(left) != len(foreign)+1 || len(rotated) != 2 || slices.Contains(rotated, older) {
		t.Errorf("left of the others %q, of the rotated %q, want two", left, rotated)
	}
	lines := parseLines(t, log, readLogs(t, []string{filepath.Join(dir, rotated[0]), filepath.Join(dir, rotated[1]), log}))
	for i, l := range lines {
		if l.Seq != lines[0].Seq+uint64(i) {
			t.Fatalf("line %d follows line %d", l.Seq, lines[i-1].Seq)
		}
	}
}

// TestLogDiskFull: a full disk costs the log lines, each of which is counted, and
// the tail none. When there is room again it goes on, behind a whole line.
func TestLogDiskFull(t *testing.T) {
	needDisk(t)
	for _, name := range formats {
		t.Run(name, func(t *testing.T) {
			dir := t.TempDir()
			if err := unix.Mount("tmpfs", dir, "tmpfs", 0, "size=100k"); err != nil {
				skip(t, "mount tmpfs: %v", err)
			}
			defer func() {
				if err := unix.Unmount(dir, 0); err != nil {
					t.Error(err)
				}
			}()
			n := newNetNS(t)
			log := filepath.Join(dir, name)
			tr := trace(t, "-o", "json", "--netns", strconv.Itoa(int(n.inode)), "--log", log)
			// Stdout gets more than the disk and the memory for what waits
			// can take.
			for size := int64(0); size < 12<<20; {
				tr.signal(0) // It still runs.
				if err := churn(n, 500); err != nil {
					t.Fatal(err)
				}
				info, err := os.Stat(tr.stdout)
				if err != nil {
					t.Fatal(err)
				}
				size = info.Size()
			}
			if err := unix.Mount("tmpfs", dir, "tmpfs", unix.MS_REMOUNT, "size=1g"); err != nil {
				t.Fatal(err)
			}
			until(t, "the loss is told in the log", func() bool {
				if err := n.do(refused); err != nil { // It is told before another line.
					t.Fatal(err)
				}
				data, _ := readLog(t, log) // compressed, half of the last frame may be there
				return bytes.Contains(data, []byte(`"where":"output"`))
			})
			checkLog(t, tr.stop())
			lines := parseLines(t, log, readLogs(t, []string{log}))
			summary := lines[len(lines)-1]
			lost := uint64(0)
			for _, l := range of(lines, "lost") {
				if l.Lost.Where == "output" {
					lost += l.Lost.Count
				}
			}
			missing := summary.Seq + 1 - uint64(len(lines))
			if lost == 0 || lost != missing || lost != summary.Summary.Lost.Output {
				t.Errorf("%d lines are missing; the lost lines count %d, the summary %d", missing, lost, summary.Summary.Lost.Output)
			}
			if got := strings.Count(tr.stderr.String(), log+": no space left on device: lines wait for room"); got != 1 {
				t.Errorf("stderr tells %d times of the full disk: %s", got, &tr.stderr)
			}
		})
	}
}

// TestLogKilled: what is logged comes to the disk without further lines behind it, and
// what SIGKILL leaves can be read, and gone on with.
func TestLogKilled(t *testing.T) {
	needDisk(t)
	for _, name := range formats {
		t.Run(name, func(t *testing.T) {
			n := newNetNS(t)
			log := filepath.Join(t.TempDir(), name)
			tr := trace(t, "--netns", strconv.Itoa(int(n.inode)), "--log", log)
			if err := n.do(refused); err != nil {
				t.Fatal(err)
			}
			until(t, "the connect is in the log", func() bool {
				data, _ := readLog(t, log)
				return bytes.Contains(data, []byte(`"outcome":"refused"`))
			})
			churned := make(chan error)
			go func() { churned <- churn(n, 1000) }()
			until(t, "lines come", func() bool {
				info, err := os.Stat(log)
				return err == nil && info.Size() > 20<<10
			})
			if err := tr.cmd.Process.Kill(); err != nil {
				t.Fatal(err)
			}
			_ = tr.wait()
			if err := <-churned; err != nil {
				t.Fatal(err)
			}
			left, _ := readLog(t, log)
			left = left[:bytes.LastIndexByte(left, '\n')+1]
			for i, l := range parseLines(t, log, left) {
				if l.Seq != uint64(i) {
					t.Fatalf("line %d has seq %d", i, l.Seq)
				}
			}

			if code, stderr := status(t, twtrace("--log", log, "--duration", "1ms")); code != 0 {
				t.Fatal(stderr)
			}
			files := logFiles(t, log)
			first, _ := readLog(t, files[0])
			if !bytes.HasPrefix(first, left) {
				t.Error("the next run has changed what was there")
			}
			last, err := readLog(t, log)
			if err != nil {
				t.Fatal(err)
			}
			meta := bytes.LastIndex(last, []byte(`"seq":0,"event":"meta"`))
			checkLog(t, parseLines(t, log, last[bytes.LastIndexByte(last[:meta], '\n')+1:]))
		})
	}
}

// TestAppendsToCompressedLog: what the log has is gone on with, unless it ends in
// half a frame: then nothing could be read of what is put behind.
func TestAppendsToCompressedLog(t *testing.T) {
	needDisk(t)
	encoder, err := zstd.NewWriter(nil)
	if err != nil {
		t.Fatal(err)
	}
	before := []byte("{\"seq\":0}\n")
	whole := encoder.EncodeAll(before, nil)
	for name, data := range map[string][]byte{"whole": whole, "torn": append(slices.Clone(whole), whole[:len(whole)-1]...)} {
		t.Run(name, func(t *testing.T) {
			log := filepath.Join(t.TempDir(), "events.jsonl.zst")
			if err := os.WriteFile(log, data, 0o600); err != nil {
				t.Fatal(err)
			}
			code, stderr := status(t, twtrace("--log", log, "--duration", "1ms"))
			if code != 0 {
				t.Fatal(stderr)
			}
			files := logFiles(t, log)
			if name == "torn" {
				if len(files) != 2 || !strings.Contains(stderr, log+" did not end in a whole frame, and is now "+files[0]) {
					t.Fatalf("files %q, stderr %s", files, stderr)
				}
				kept, err := os.ReadFile(files[0])
				if err != nil || !bytes.Equal(kept, data) {
					t.Errorf("the file that was torn is not what it was: %v", err)
				}
				checkLog(t, parseLines(t, log, readLogs(t, files[1:])))
				return
			}
			got, err := readLog(t, log)
			if err != nil || len(files) != 1 {
				t.Fatalf("files %q: %v", files, err)
			}
			rest, ok := bytes.CutPrefix(got, before)
			if !ok {
				t.Fatalf("the log begins with %.100s", got)
			}
			checkLog(t, parseLines(t, log, rest))
		})
	}
}

// TestRotationFails: a log that can't be renamed goes on as it is, which is said
// once; when it can be, it is.
func TestRotationFails(t *testing.T) {
	needDisk(t)
	n := newNetNS(t)
	log := filepath.Join(t.TempDir(), "events.jsonl")
	if err := os.WriteFile(log, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	// What is mounted can't be renamed.
	if err := unix.Mount(log, log, "", unix.MS_BIND, ""); err != nil {
		skip(t, "mount a file: %v", err)
	}
	mounted := true
	unmount := func() {
		if mounted {
			mounted = false
			if err := unix.Unmount(log, unix.MNT_DETACH); err != nil {
				t.Error(err)
			}
		}
	}
	defer unmount()
	tr := trace(t, "--netns", strconv.Itoa(int(n.inode)), "--log", log, "--log-max-size", "64K")
	if err := churn(n, 200); err != nil {
		t.Fatal(err)
	}
	until(t, "the log is far too large", func() bool {
		info, err := os.Stat(log)
		return err == nil && info.Size() > 1<<20
	})
	unmount()
	tr.signal(unix.SIGHUP) // now, and not in ten seconds
	until(t, "a new file", func() bool { return len(logFiles(t, log)) == 2 })
	tr.end()
	checkLog(t, parseLines(t, log, readLogs(t, logFiles(t, log))))
	if got := strings.Count(tr.stderr.String(), "device or resource busy: the log goes on, and it is tried again\n"); got != 1 {
		t.Errorf("stderr tells %d times that it can't be renamed: %s", got, &tr.stderr)
	}
}
