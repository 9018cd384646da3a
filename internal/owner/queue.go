package owner

import (
	"bufio"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"strconv"
	"strings"
)

// Queue is a listener's queue of connections that nobody has accepted yet.
type Queue struct {
	Port   uint16
	Length uint32
	Inode  uint64 // of the listener's socket
}

// Queues returns the queues of the network namespace at path that are not empty.
func Queues(path string) ([]Queue, error) {
	var queues []Queue
	err := inside(path, func() error {
		for _, name := range []string{"tcp", "tcp6"} {
			file, err := os.Open("/proc/thread-self/net/" + name)
			if errors.Is(err, fs.ErrNotExist) {
				continue
			}
			if err != nil {
				return err
			}
			// Listeners come first.
			lines := bufio.NewScanner(file)
			for lines.Scan() {
				q, isListener := parseQueue(lines.Text())
				if !isListener && strings.Contains(lines.Text(), ":") {
					break
				}
				if q.Length > 0 {
					queues = append(queues, q)
				}
			}
			file.Close()
		}
		return nil
	})
	if err != nil {
		return nil, fmt.Errorf("read the queues of listeners: %w", err)
	}
	return queues, nil
}

// parseQueue parses a line of /proc/net/tcp (net/ipv4/tcp_ipv4.c,
// get_tcp4_sock): of a listener rx_queue is the length of its queue.
func parseQueue(line string) (q Queue, isListener bool) {
	fields := strings.Fields(line)
	if len(fields) < 10 || fields[3] != "0A" {
		return q, false
	}
	_, port, _ := strings.Cut(fields[1], ":")
	_, length, _ := strings.Cut(fields[4], ":")
	p, err := strconv.ParseUint(port, 16, 16)
	if err != nil {
		return q, false
	}
	n, err := strconv.ParseUint(length, 16, 32)
	if err != nil {
		return q, false
	}
	inode, err := strconv.ParseUint(fields[9], 10, 64)
	if err != nil {
		return q, false
	}
	return Queue{Port: uint16(p), Length: uint32(n), Inode: inode}, true
}
