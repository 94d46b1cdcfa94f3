/** A heap that grows, is collected, shrinks and grows again: what a service does over a day, in seconds. */
import java.util.ArrayDeque;
import java.util.HashMap;

public class Churn {
    public static void main(String[] args) throws InterruptedException {
        for (int wave = 0; wave < 3; wave++) {
            HashMap<Integer, byte[]> cache = new HashMap<>();
            ArrayDeque<int[]> recent = new ArrayDeque<>();
            for (int i = 0; i < 60_000; i++) {
                cache.put((int) (i * 2_654_435_761L % 20_011), new byte[64 + i % 1_500]);
                recent.add(new int[i % 300]);
                if (recent.size() > 2_000) {
                    recent.poll();
                }
            }
            cache.clear();
            recent.clear();
            System.gc(); // also gives free memory back to the system
            Thread.sleep(200);
        }
    }
}
